# make_strip.py: pictures in a row, or some rows of a picture, small, as doc/TEACHING.md shows them.
#
#     python test/python/make_strip.py run/steps-{1,2,5,10,25}.png -o doc/teaching/steps.jpg    (needs Pillow)
#     python test/python/make_strip.py run/words.png --rows 1 4 11 -o doc/teaching/words.jpg
import argparse

from PIL import Image

SIDE, GAP = 112, 4


def row(pictures):
    sheet = Image.new("RGB", (len(pictures) * (SIDE + GAP) - GAP, SIDE), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture.resize((SIDE, SIDE), Image.LANCZOS), (i * (SIDE + GAP), 0))
    return sheet


def rows_of(picture, rows):  # of `sd sample --attention`, whose parts are 128 pixels apart by 4
    sheet = Image.new("RGB", (picture.width, len(rows) * 132 - 4), "white")
    for i, n in enumerate(rows):
        sheet.paste(picture.crop((0, n * 132, picture.width, n * 132 + 128)), (0, i * 132))
    return sheet.resize((400, 400 * sheet.height // sheet.width), Image.LANCZOS)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--rows", type=int, nargs="+", help="only these of the one picture, from 0")
    parser.add_argument("-o", "--output", required=True)
    options = parser.parse_args()
    pictures = [Image.open(name).convert("RGB") for name in options.pictures]
    sheet = rows_of(pictures[0], options.rows) if options.rows else row(pictures)
    sheet.save(options.output, quality=85)


main()
