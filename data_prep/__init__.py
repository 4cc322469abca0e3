"""Commands that bring data into the layouts that `wsss_lib` reads: `python -m data_prep.NAME --help`."""
