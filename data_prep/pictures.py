"""The kinds of picture files that are read. Pillow would try some seventy by a file's first bytes, and run Ghostscript for one."""

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")  # to be given to Image.open wherever a file may be a stranger's
