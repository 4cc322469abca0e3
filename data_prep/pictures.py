"""The kinds of picture files that are read. Left alone, Pillow tries some seventy, and starts Ghostscript for one of them."""

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")  # to be given to Image.open wherever a file may be a stranger's
