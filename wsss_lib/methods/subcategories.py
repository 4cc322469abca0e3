"""Sub-categories of SC-CAM (Chang et al., CVPR 2020): k-means on image features within each class, their labels and tables."""

import csv
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from wsss_lib.data import transforms
from wsss_lib.data.dataset import DataError, SegmentationDataset, image_size
from wsss_lib.formats import write_atomically
from wsss_lib.inference import batches_of_like_size
from wsss_lib.progress import progress

STARTS = 10  # of k-means; scikit-learn's default when the method was published, 1 today


@torch.inference_mode()
def image_features(backbone: nn.Module, data: SegmentationDataset, mean: tuple, std: tuple, batch_size: int) -> np.ndarray:
    """Return f, the mean of the deepest map of every whole image at scale 1: float32 (N, D), rows in the order of the ids.

    Args:
        backbone: a trunk, in evaluation mode.
        data: the images.
        mean, std: of the normalisation.
        batch_size: images of one size at once.

    Source: SC-CAM, section 3.3. Explained in notebook 60, section "Sub-categories".
    """
    device = next(backbone.parameters()).device
    row = {image_id: index for index, image_id in enumerate(data.ids)}
    groups = batches_of_like_size(data.ids, lambda image_id: image_size(data.image_path(image_id)), batch_size)
    features = np.zeros((len(data), backbone.channels[-1]), np.float32)
    for group in progress(groups, "features"):
        images = [transforms.to_tensor(transforms.normalize(data.image(image_id), mean, std)) for image_id in group]
        maps = backbone(torch.stack(images).to(device))  # M: (n, D, h, w)
        features[[row[image_id] for image_id in group]] = maps.float().mean((2, 3)).cpu().numpy()
    return features


def cluster_images(features: np.ndarray, labels: np.ndarray, clusters: int, seed: int = 0) -> np.ndarray:
    """Split every class into sub-categories: k-means on the features of the images that carry the class.

    A class with fewer images than clusters gets one sub-category an image; its other numbers are never used.

    Args:
        features: f, float (N, D), as they are: not scaled.
        labels: 0 or 1, (N, C).
        clusters: K.
        seed: of the starts.

    Returns:
        int64 (N, C): the sub-category 0..K-1 of an image in a class, -1 where it does not carry the class.

    Raises:
        ValueError: shapes that do not fit, features that are not finite, or a K below 1.

    Source: SC-CAM, equation 1. Explained in notebook 60, section "Sub-categories".

    >>> features = np.array([[0.0], [9.0], [0.1], [9.1]])
    >>> of_class = cluster_images(features, np.array([[1, 0], [1, 1], [1, 0], [1, 0]]), clusters=2)
    >>> bool(of_class[0, 0] == of_class[2, 0] != of_class[1, 0] == of_class[3, 0]), of_class[:, 1].tolist()
    (True, [-1, 0, -1, -1])
    """
    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim != 2 or labels.ndim != 2 or len(features) != len(labels):
        raise ValueError(f"features {features.shape} and labels {labels.shape} must be (N, D) and (N, C) of the same N images")
    if not np.isfinite(features).all():
        raise ValueError("the features hold values that are not finite; the network that made them has diverged")
    if clusters < 1:
        raise ValueError(f"clusters must be at least 1, not {clusters}")
    result = np.full(labels.shape, -1, np.int64)
    for number in range(labels.shape[1]):
        members = np.flatnonzero(labels[:, number])  # S_c
        if not len(members):
            continue
        kmeans = KMeans(min(clusters, len(members)), n_init=STARTS, max_iter=300, random_state=seed)
        with warnings.catch_warnings():  # equal images: fewer clusters come out than were asked for, which `used` tells
            warnings.simplefilter("ignore", ConvergenceWarning)
            result[members, number] = kmeans.fit_predict(_with_the_same_distances(features[members]))
    return result


def _with_the_same_distances(points: np.ndarray) -> np.ndarray:
    """Turn n points of D > n numbers, (n, D), into n numbers each: n points span no more, and k-means sees distances only."""
    if len(points) >= points.shape[1]:
        return points
    different, index = np.unique(points, axis=0, return_inverse=True)  # equal images must stay equal to the last digit
    return np.linalg.qr(different.T, mode="r").T[index.ravel()]  # X^T = QR, so that X X^T = R^T R


def subcategory_labels(assignment: np.ndarray, clusters: int) -> np.ndarray:
    """Return Y_s: uint8 (N, C * K), a 1 for each class of an image.

    Args:
        assignment: from `cluster_images`.
        clusters: K.

    Example:
        >>> subcategory_labels(np.array([[1, -1], [0, 1]]), clusters=2).tolist()
        [[0, 1, 0, 0], [1, 0, 0, 1]]
    """
    return (assignment[:, :, None] == np.arange(clusters)).reshape(len(assignment), -1).astype(np.uint8)


def class_major_order(labels: np.ndarray) -> np.ndarray:
    """Return the order of the official training list: all images of class 0, then those of class 1 not yet named, and so on.

    Example:
        >>> class_major_order(np.array([[0, 1], [1, 1], [1, 0]])).tolist()
        [1, 2, 0]
    """
    _, images = np.nonzero(np.asarray(labels).T)  # (class, image) pairs, class after class
    return np.array(list(dict.fromkeys(images.tolist())), np.int64)


def used_subcategories(assignment: np.ndarray) -> np.ndarray:
    """Return how many sub-categories each class really has: int64 (C,)."""
    return np.array([len(np.unique(column[column >= 0])) for column in assignment.T])


def purity(assignment: Sequence, truth: Sequence) -> float:
    """Return the share of images that are of the commonest true kind of their sub-category.

    It cannot fall below the share of the commonest kind of all, and grows with the number of sub-categories: compare it
    with the value for the same sub-categories dealt at random.

    Args:
        assignment: sub-category of each image.
        truth: its true kind.

    Raises:
        ValueError: no images, or not as many of the one as of the other.

    Source: the usual measure of a clustering. Explained in notebook 60, section "Sub-categories".

    Example:
        >>> purity([0, 0, 0, 1], ["a", "a", "b", "b"])
        0.75
    """
    assignment, truth = np.asarray(assignment), np.asarray(truth)
    if not len(truth) or assignment.shape != truth.shape:
        raise ValueError(f"purity needs as many sub-categories as true kinds, not {len(assignment)} and {len(truth)}")
    commonest = [np.unique(truth[assignment == number], return_counts=True)[1].max() for number in np.unique(assignment)]
    return float(sum(commonest) / len(truth))


def write_subcategories(path: Path, data: SegmentationDataset, assignment: np.ndarray) -> None:
    """Write `image_id,class,subcategory`, one line for each class of each image, class after class.

    Args:
        path: the table.
        data: the images.
        assignment: from `cluster_images`, (N, C).
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "class", "subcategory"])
    writer.writerows([data.ids[image], data.classes[number], assignment[image, number]]
                     for number, image in zip(*np.nonzero(assignment.T >= 0), strict=True))
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))


def read_subcategories(path: Path) -> dict[tuple[str, str], str]:
    """Read such a table.

    Args:
        path: the table; the generated data set has one of the true kinds.

    Returns:
        (image id, class name) to the sub-category's name.

    Raises:
        DataError: the file is missing or has another form.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except FileNotFoundError:
        raise DataError(f"{path}: the table of sub-categories is missing; run notebook 60_sccam first") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a UTF-8 CSV file ({error}); delete it and run its stage again") from None
    if rows[:1] != [["image_id", "class", "subcategory"]] or any(len(row) != 3 for row in rows):
        raise DataError(f"{path}: the columns must be image_id, class and subcategory; delete it and run its stage again")
    return {(image_id, name): kind for image_id, name, kind in rows[1:]}


def assignment_of(path: Path, data: SegmentationDataset, clusters: int) -> np.ndarray:
    """Read what `write_subcategories` wrote.

    Args:
        path: the table.
        data: the images.
        clusters: K.

    Returns:
        int64 (N, C), -1 where an image does not carry the class.

    Raises:
        DataError: as `read_subcategories`, or the table does not belong to these images, labels and K.
    """
    table = read_subcategories(path)
    assignment = np.full(data.labels.shape, -1, np.int64)
    for image, number in zip(*np.nonzero(data.labels), strict=True):
        kind = table.get((data.ids[image], data.classes[number]), "")
        if not kind.isascii() or not kind.isdigit() or int(kind) >= clusters:
            raise DataError(f"{path}: image {data.ids[image]} has the sub-category {kind!r} of class {data.classes[number]}, "
                            f"not one of 0..{clusters - 1}; delete the file and run its stage again")
        assignment[image, number] = int(kind)
    return assignment
