"""The streams of the one-truth tests in forty lines of numpy, scipy and Pillow, by themselves."""

# fmt: off
import hashlib
import os

import numpy as np
from PIL import Image, ImageEnhance
from scipy.ndimage import affine_transform

U32 = np.uint64(0xFFFFFFFF)
def philox(sample: int, epoch: int, block: int, seed: int) -> list[int]:
    c, k = [sample & 0xFFFFFFFF, sample >> 32, epoch, block], [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c
def picture(x: np.ndarray, sample: int, epoch: int, seed: int) -> np.ndarray:
    words = [w for block in range(5) for w in philox(sample, epoch, block, seed)]
    u = [((a >> 5) * 2**26 + (b >> 6)) / 2**53 for a, b in zip(words[::2], words[1::2], strict=True)]
    theta, shear = np.deg2rad(-30 + 60 * u[0]), np.deg2rad(-8 + 16 * u[3])
    size = len(x)  # square
    tx, ty = (-0.1 + 0.2 * u[1]) * size, (-0.2 + 0.4 * u[2]) * size
    m = np.array([[np.cos(theta), -np.sin(theta), 0], [np.sin(theta), np.cos(theta), 0], [0, 0, 1]])
    m = m @ np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1]])
    m = m @ np.array([[1, -np.sin(shear), 0], [0, np.cos(shear), 0], [0, 0, 1]])
    m = m @ np.diag([0.8 + (1.2 - 0.8) * u[4], 0.8 + (1.2 - 0.8) * u[5], 1])
    o = np.array([[1, 0, size / 2 - 0.5], [0, 1, size / 2 - 0.5], [0, 0, 1]])
    m = (o @ m @ np.linalg.inv(o))[np.ix_([1, 0, 2], [1, 0, 2])]
    y = np.stack([affine_transform(x[..., c].astype("f4"), m[:2, :2], m[:2, 2], order=1, mode="nearest") for c in range(3)])
    y = np.clip(y + (-20 + 40 * u[8]), y.min(), y.max()).transpose(1, 2, 0)
    y = y[:, ::-1] if u[6] < 0.5 else y
    gray = ImageEnhance.Brightness(Image.fromarray(y.astype("u1"))).enhance(0.7 + (1.3 - 0.7) * u[9])
    y = np.asarray(gray).astype("f4") * np.float32(1 / 255)
    return (y - np.float32(0.5)) / np.float32(0.25 + 1e-6)
def folder(root: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    names = sorted(os.listdir(root))
    files = [(k, os.path.join(root, name, file)) for k, name in enumerate(names) for file in sorted(os.listdir(os.path.join(root, name)))]
    pictures = [Image.open(path).convert("RGB").resize((size, size), Image.Resampling.NEAREST) for _, path in files]
    return np.stack([np.asarray(p) for p in pictures]), np.eye(len(names), dtype="f4")[[k for k, _ in files]]
def digest(x: np.ndarray, y: np.ndarray, weight: np.ndarray, seed: int, size: int) -> str:
    sha, raw = hashlib.sha256(), np.array([seed, 0x6F72646572], "u8")
    for epoch in range(2):
        order = np.argsort(np.random.Philox(key=raw, counter=[0, 0, epoch, 0]).random_raw(len(x)), kind="stable")
        for i in range(0, len(x), size):
            batch = order[i:i + size]
            sha.update(np.stack([picture(x[s], int(s), epoch, seed) for s in batch]).astype("f4").tobytes())
            sha.update(y[batch].tobytes() + weight[batch].tobytes())
    return sha.hexdigest()
