"""Real or generated? By onnxruntime, Pillow and numpy alone: python example.py photo.jpg"""

import io
import json
import random
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import onnxruntime
from PIL import Image

here = Path(__file__).parent
record = json.loads((here / "detector.json").read_text())
session = onnxruntime.InferenceSession(str(here / "detector.onnx"))
size = record["crop_size"]


def judge(path: str) -> dict:
    image = Image.open(path).convert("RGB")
    pixels = np.asarray(image)
    if min(image.size) < size:  # reflect, as often as it takes
        pad = [(0, max(size - side, 0)) for side in pixels.shape[:2]]
        pixels = np.pad(pixels, [*pad, (0, 0)], mode="reflect")
    down, right = (max(side - size, 0) for side in pixels.shape[:2])
    places = dict.fromkeys([(down // 2, right // 2), (0, 0), (0, right), (down, 0), (down, right)])
    first = np.asarray(image)[down // 2 :, right // 2 :][:size, :size]
    draw = random.Random(crc32(first.tobytes()))  # windows start anywhere on the grid of an earlier codec
    crops = []
    for corner in list(places)[: record["crops"]]:
        by = [draw.randrange(8) for _ in corner]
        top, left = (
            p + b if p + b <= last else max(p - b, 0) for p, b, last in zip(corner, by, (down, right), strict=True)
        )
        window = Image.fromarray(pixels[top : top + size, left : left + size])
        if record["equalise_quality"]:
            window.save(file := io.BytesIO(), "JPEG", quality=record["equalise_quality"], subsampling="4:2:0")
            window = Image.open(file)
        crops.append(np.asarray(window, dtype=np.float32).transpose(2, 0, 1) / 255)
    logits = [answer.mean(0) for answer in session.run(None, {"crops": np.stack(crops)})]
    p_fake = 1 / (1 + np.exp(-logits[0] / record["temperature"]))
    low, high = record["band"] or [record["threshold"]] * 2
    answer = {"p_fake": float(p_fake), "verdict": "fake" if p_fake >= high else "real" if p_fake < low else "unsure"}
    if record["likelihood"]:
        answer["log10_lr"] = float(np.interp(logits[0], record["likelihood"]["x"], record["likelihood"]["log10_lr"]))
    if "stage2" in record:
        answer["nearest_generator"] = record["stage2"]["classes"][int(logits[1].argmax())]
    return answer


for name in sys.argv[1:]:
    print(name, json.dumps(judge(name)))
