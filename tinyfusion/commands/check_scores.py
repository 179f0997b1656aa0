"""What is refused before samples are drawn: scores that can't be computed of them."""

from __future__ import annotations

from tinyfusion.commands.checks import decoder_for
from tinyfusion.data.image_sets import ImageSet
from tinyfusion.data.source import ImageSource
from tinyfusion.errors import InputError
from tinyfusion.metrics.evaluation import Evaluation
from tinyfusion.metrics.features import check_input, load_extractor
from tinyfusion.metrics.inception import INCEPTION_EXTRACTOR
from tinyfusion.metrics.reference import check_statistics, read_reference


def check_extractor(evaluation: Evaluation, source: ImageSource, key: str) -> None:
    """Refuse an extractor that does not take the images that samples become.

    Args:
        evaluation: the protocol that scores by it.
        source: the data.
        key: where the protocol is configured, for the message.

    Raises:
        InputError: the extractor takes images of other shapes, or there is no decoder to make
            images of latents.
    """
    found = _scored_shape(evaluation, source)
    if evaluation.autoencoder is None and not source.pixels:
        raise InputError(
            f"{key}: scores need images but the data holds latents; give their decoder "
            f"({decoder_for(source.channels)}), or evaluation=none for no scores"
        )
    check_scored(evaluation, found, "the data's", key)


def check_images(evaluation: Evaluation, images: ImageSet, source: ImageSource | None) -> None:
    """Refuse images that a protocol can't score, before any of them is looked at.

    Args:
        evaluation: the protocol.
        images: the images.
        source: the data whose images are the real ones; ``None`` if there is a reference.

    Raises:
        InputError: see `check_reference`; images that the extractor does not take, or too few.
    """
    check_scored(evaluation, images.shape, "these", "evaluation")
    evaluation.check_counts(samples=len(images))
    load_extractor(evaluation.extractor, evaluation.weights)
    if source is None:
        check_reference(evaluation, images.shape, "evaluation")
        return
    wanted = _scored_shape(evaluation, source)
    if wanted != images.shape:
        raise InputError(
            f"images: they have shape {images.shape}, but the data's, which they are scored "
            f"against, {wanted}; give evaluation.reference=, or other data"
        )


def check_scored(evaluation: Evaluation, shape: tuple[int, int, int], whose: str, key: str) -> None:
    """Refuse an extractor that does not take some images.

    Args:
        evaluation: the protocol that scores by it.
        shape: shape of one image, (C, H, W).
        whose: what the images are called.
        key: where the protocol is configured, for the message.

    Raises:
        InputError: the extractor takes images of other shapes.
    """
    try:
        check_input(shape, evaluation.extractor)
    except InputError as error:
        raise InputError(
            f"{key}.extractor={evaluation.extractor} does not take {whose} images: {error}; choose "
            f"another extractor, such as {INCEPTION_EXTRACTOR} (evaluation=inception), or "
            "evaluation=none for no scores"
        ) from None


def check_files(evaluation: Evaluation, source: ImageSource, key: str) -> None:
    """Refuse scores that would fail after all training, for want of a file.

    Args:
        evaluation: the protocol that scores.
        source: the data.
        key: where the protocol is configured, for the message.

    Raises:
        InputError: the weights of extractor or decoder can't be fetched or read, or the reference
            can't be read or holds images of another shape than what is scored.
    """
    load_extractor(evaluation.extractor, evaluation.weights)
    if evaluation.autoencoder is not None:
        evaluation.autoencoder.load()
    evaluation.check_counts(evaluation.num_samples)
    if evaluation.reference is not None:
        check_reference(evaluation, _scored_shape(evaluation, source), key)


def check_reference(evaluation: Evaluation, shape: tuple[int, int, int], key: str) -> None:
    """Refuse real images that some samples can't be compared with.

    Args:
        evaluation: the protocol, which has a ``reference``.
        shape: shape of one sample, (C, H, W).
        key: where the protocol is configured, for the message.

    Raises:
        InputError: a reference that can't be read, has too few images, images of another shape,
            or statistics of another extractor.
    """
    assert evaluation.reference is not None
    key = f"{key}.reference"
    real = read_reference(evaluation.reference, evaluation.reference_samples, key)
    check_statistics(real, evaluation.extractor, evaluation.weights, key)
    if real.images is None:
        return
    if real.images.shape != shape:
        raise InputError(
            f"{key}={evaluation.reference!r} holds images of shape {real.images.shape}, but those "
            f"that are scored have {shape}; valid: real images of the same size and channels"
        )
    evaluation.check_counts(reference=len(real.images))


def _scored_shape(evaluation: Evaluation, source: ImageSource) -> tuple[int, int, int]:
    """Shape (C, H, W) of the images that samples become."""
    if evaluation.autoencoder is None:
        return (source.channels, source.size, source.size)
    side = source.size * evaluation.autoencoder.factor
    return (3, side, side)


def check_held_out(held_out: int | None) -> None:
    """Refuse data of which nothing is held out.

    Args:
        held_out: held-out images as configured; ``None`` if the data itself says how many.

    Raises:
        InputError: no image is held out.
    """
    if held_out == 0:
        raise InputError(
            "data.held_out=0 leaves no image to compute the held-out loss on; give data.held_out=N"
        )
