"""Draw contact_sheet.png, the picture of README.md: the five tasks with the small model, one in each row.

python notebooks/assets/make_contact_sheet.py
"""

from pathlib import Path

from PIL import Image

from opensora_lite import MaskStrategy, OpenSora

ASSETS = Path(__file__).parent
SUNSETS = [ASSETS / "sunset1.png", ASSETS / "sunset2.png"]
TASKS = [  # prompt, references, mask strategy
    ("a red car driving right on the ocean at sunset", None, None),
    ("a breathtaking sunrise scene", [ASSETS / "wave.png"], MaskStrategy.image()),
    ("a beautiful sunset over the city", SUNSETS, MaskStrategy.connect()),
    ("a red car driving right on the ocean at noon", [ASSETS / "car.mp4"], MaskStrategy.extend(6)),
    ("a cyberpunk-style car", [ASSETS / "car.mp4"], MaskStrategy.edit(0.4)),
]


def main():
    pipe = OpenSora.from_pretrained("tiny")
    rows = []
    for prompt, references, strategy in TASKS:
        video = pipe(prompt, references=references, mask_strategy=strategy, seed=0)
        rows.append(
            video.contact_sheet(
                columns=8, frames=range(1, 16, 2) if references is None else [0, 2, 4, 6, 8, 10, 12, 15]
            )
        )
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    for i, row in enumerate(rows):
        sheet.paste(row, (0, sum(above.height for above in rows[:i])))
    sheet.save(ASSETS / "contact_sheet.png")


if __name__ == "__main__":
    main()
