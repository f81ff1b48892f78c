# make_grid.py: pictures with their captions on one sheet, as README.md shows them.
#
#     python test/python/make_grid.py PROMPTS.txt FOLDER -o doc/samples.jpg      (needs Pillow)
#
# PROMPTS.txt and FOLDER are what `sd sample --prompts PROMPTS.txt --out FOLDER` read and wrote.
import argparse
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLUMNS, SIZE, MARGIN, LINES, LINE = 8, 128, 8, 4, 11


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("prompts", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--count", type=int, default=48)
    options = parser.parse_args()
    prompts = options.prompts.read_text().splitlines()[: options.count]
    width, height = SIZE + MARGIN, SIZE + LINES * LINE + MARGIN
    rows = -(-len(prompts) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width + MARGIN, rows * height + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(9)
    for i, prompt in enumerate(prompts):
        x, y = MARGIN + i % COLUMNS * width, MARGIN + i // COLUMNS * height
        sheet.paste(Image.open(options.folder / f"{i:05d}.png"), (x, y))
        for n, line in enumerate(textwrap.wrap(prompt, 30)[:LINES]):
            draw.text((x, y + SIZE + 1 + n * LINE), line, fill="black", font=font)
    sheet.save(options.output, quality=88)


main()
