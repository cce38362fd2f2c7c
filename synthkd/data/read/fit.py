"""Resizing and cropping of images whose sizes differ."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageOps


@dataclass(frozen=True)
class Fit:
    """How an image is brought to a size: it is resized first, then its centre is cut out.

    Attributes:
        resize: the shorter side, or (height, width) whatever the shape of the image, as torchvision's Resize; None: the
            largest centred window of the shape of `crop`, resized to it.
        crop: (height, width) of the centre that is cut out, at most the resized image; None: nothing is cut off.
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None

    def __call__(self, image: Image.Image) -> Image.Image:
        """The resized and cropped image, by antialiased bilinear interpolation.

        Raises:
            ValueError: `crop` does not fit into the resized image.
        """
        if self.resize is None:
            if self.crop is None:
                return image
            return ImageOps.fit(image, (self.crop[1], self.crop[0]), method=Image.Resampling.BILINEAR)
        height, width = self._resized(image.height, image.width)
        if (height, width) != (image.height, image.width):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        if self.crop is None:
            return image
        if self.crop[0] > height or self.crop[1] > width:
            raise ValueError(f"{height}x{width} pixels after resize, too few to cut out {self.crop[0]}x{self.crop[1]}")
        # The rounding of torchvision's CenterCrop.
        top, left = round((height - self.crop[0]) / 2.0), round((width - self.crop[1]) / 2.0)
        return image.crop((left, top, left + self.crop[1], top + self.crop[0]))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the result for an image of this height and width."""
        return self.crop or self._resized(height, width)

    def enlarges(self, height: int, width: int) -> bool:
        """Whether the result has more pixels along a side than the image gives for it."""
        target = self._resized(height, width) if self.crop is None or self.resize is not None else self.crop
        return height < target[0] or width < target[1]

    @property
    def pixels(self) -> str:
        """The size that images are brought to, for messages: "224" or "160x240"."""
        target = self.crop if self.resize is None else self.resize
        if not isinstance(target, tuple):
            return str(target)
        return str(target[0]) if target[0] == target[1] else f"{target[0]}x{target[1]}"

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        # The longer side is cut off to whole pixels, as torchvision does it.
        if height <= width:
            return self.resize, int(self.resize * width / height)
        return int(self.resize * height / width), self.resize
