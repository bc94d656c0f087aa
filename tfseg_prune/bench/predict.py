"""Writes what a LiteRT segmentation network sees, as colours over images.

As a command: `python -m tfseg_prune.bench.predict segmenter.tflite street.jpg overlay.png`.
"""

import argparse
import pathlib
import sys
import warnings

from PIL import Image

from tfseg_prune import atomic
from tfseg_prune.bench.segmenter import IMAGE_SUFFIXES, Segmenter

_SHOWN = 5


def predict(path, source, out, *, opacity=0.5, metadata=None, threads=1, say=print):
    """Segments an image, or all images of a folder, and writes the coloured overlays as PNG.

    Args:
        path: path of the `.tflite` file.
        source: path of an image, or of a folder of images.
        out: path of the `.png` to write; of a folder of images, the folder to write to, made if it
            isn't there: each overlay has its image's name.
        opacity: of the colours, in [0, 1]. Defaults to `0.5`.
        metadata, threads: see `Segmenter`.
        say: function that is told what was written. Defaults to `print`.

    Returns:
        List of the paths written.

    Raises:
        ValueError: if the file, an image or `out` can't be used. The other images of a folder are
            done first, and all that failed are listed.

    Example:

    >>> predict("segmenter.tflite", "street.jpg", "overlay.png")  # doctest: +SKIP
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"Invalid opacity. Expected: in [0, 1]. Received: {opacity!r}.")
    targets = _targets(pathlib.Path(source), pathlib.Path(out))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        segmenter = Segmenter(path, metadata=metadata, threads=threads)
    written, problems = [], []
    with segmenter:
        if segmenter.assumed:
            say(segmenter.assumed)
        for image, target in targets.items():
            try:
                found = segmenter(image)
            except ValueError as error:
                problems.append(str(error))
                continue
            with atomic.replacing(target) as temporary:
                Image.fromarray(found.overlay(opacity)).save(temporary)
            written.append(target)
            shares = list(found.shares().items())[:_SHOWN]
            say(f"{target}: {', '.join(f'{name} {share:.0%}' for name, share in shares)}")
    if problems:
        raise ValueError(
            problems[0]
            if len(problems) == 1
            else f"{len(problems)} of {len(targets)} images failed:\n" + "\n".join(problems)
        )
    return written


def _targets(source, out):
    """{image: overlay to write}."""
    if not source.is_dir():
        if out.suffix != ".png" or not out.parent.is_dir() or out.is_dir():
            raise ValueError(
                "The overlay can't be written. Expected: a file that ends in .png, in an existing "
                f"folder. Received: '{out}'."
            )
        targets = {source: out}
    else:
        images = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise ValueError(
                f"No images. Expected: a folder with files that end in {', '.join(IMAGE_SUFFIXES)}."
                f" Received: '{source}'."
            )
        if not out.is_dir() and (out.exists() or out.suffix or not out.parent.is_dir()):
            raise ValueError(
                "The overlays can't be written. Expected: a folder, as the images are one, in an "
                f"existing folder. Received: '{out}'."
            )
        stems = [path.stem for path in images]
        targets = {
            path: out / f"{path.stem if stems.count(path.stem) == 1 else path.name}.png"
            for path in images
        }
    if out.resolve() == source.resolve():
        # In their folder overlays would be the next run's images, or replace them.
        raise ValueError(
            "Overlays do not lie where their images do. Expected: another place. Received:"
            f" '{out}'."
        )
    if source.is_dir():
        out.mkdir(exist_ok=True)
    return targets


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m tfseg_prune.bench.predict",
        description="Writes what a LiteRT segmentation network sees, as colours over images.",
    )
    parser.add_argument("model", metavar="FILE.tflite")
    parser.add_argument("image", metavar="IMAGE", help="an image, or a folder of images")
    parser.add_argument("out", metavar="OUT.png", help="the overlay, or a folder for overlays")
    parser.add_argument("--opacity", type=float, default=0.5, help="of the colours (default 0.5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    return parser


def main(argv=None):
    """The command line of this module; answers the exit status: 0, or 2 after an error."""
    args = _parser().parse_args(argv)
    try:
        options = {"opacity": args.opacity, "threads": args.threads}
        predict(args.model, args.image, args.out, **options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
