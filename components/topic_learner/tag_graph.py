"""Which tags go together: a graph of tags, random walks over it, and a vector for each tag.

Source: "Multimodal Topic Learning for Video Recommendation", section III.A.2, eq. 3-4.

T tags, E edges, D width, N videos.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from gensim.models import Word2Vec
from scipy import sparse

Floats = npt.NDArray[np.float32]
Pair = tuple[str, str]
WINDOW, EPOCHS = 5, 5  # of skip-gram


def tag_pairs(tags: Sequence[str]) -> Iterator[Pair]:
    """Every unordered pair of the different tags of a video, once."""
    return combinations(sorted(set(tags)), 2)


@dataclass(frozen=True)
class TagGraph:
    """Tags that occur together; one that is alone in all its videos is not in it.

    Attributes:
        tags: [T], sorted.
        weights: [T, T], symmetric: how many videos have both tags.
    """

    tags: list[str]
    weights: sparse.csr_matrix

    @classmethod
    def of(cls, counts: Mapping[Pair, int]) -> TagGraph:
        """The graph of the counts of unordered pairs."""
        tags = sorted({tag for pair in counts for tag in pair})
        index = {tag: i for i, tag in enumerate(tags)}
        ends = np.array([[index[a], index[b]] for a, b in counts], np.int64).reshape(-1, 2)
        values = np.fromiter(counts.values(), np.float64, len(counts))
        half = sparse.coo_matrix((values, (ends[:, 0], ends[:, 1])), (len(tags), len(tags)))
        return cls(tags, (half + half.T).tocsr())

    @property
    def probabilities(self) -> sparse.csr_matrix:
        """Eq. 3: the weight of an edge over the weight of all edges; [T, T], each edge in both directions."""
        return self.weights / (self.weights.sum() / 2)

    def walks(self, each: int, length: int, seed: int) -> npt.NDArray[np.int64]:
        """Random walks from every tag; the next tag is drawn by the probabilities of the edges at the last one.

        All walks take a step at once: a point is drawn on the stretch that the edges of the tag take up when those of
        all tags lie one behind the other, and looked up.

        Args:
            each: Walks from each tag.
            length: Tags of a walk.
            seed: Of the draws.

        Returns:
            [T * each, length], indices of tags.
        """
        random = np.random.default_rng(seed)
        ends = np.cumsum(self.weights.data)  # whole numbers, so exact
        starts = np.append(0.0, ends)[self.weights.indptr]
        walks = np.empty((len(self.tags) * each, length), np.int64)
        walks[:, 0] = np.repeat(np.arange(len(self.tags)), each)
        for step in range(1, length):
            low, high = starts[walks[:, step - 1]], starts[walks[:, step - 1] + 1]
            point = np.minimum(low + random.random(len(walks)) * (high - low), np.nextafter(high, 0))
            walks[:, step] = self.weights.indices[np.searchsorted(ends, point, side="right")]
        return walks


def tag_vectors(graph: TagGraph, width: int, walks: int, length: int, seed: int) -> Floats:
    """A vector for each tag of the graph: skip-gram with negative sampling over random walks.

    Args:
        graph: Of T tags.
        width: D.
        walks: From each tag.
        length: Of a walk.
        seed: The same gives the same vectors.

    Returns:
        [T, D], rows of length 1.
    """
    if not graph.tags:
        return np.zeros((0, width), np.float32)
    sentences = [[str(tag) for tag in walk] for walk in graph.walks(walks, length, seed)]
    model = Word2Vec(
        sentences,
        vector_size=width,
        window=WINDOW,
        sg=1,
        min_count=1,
        epochs=EPOCHS,
        seed=seed,
        workers=1,  # more would make the result a matter of chance
    )
    vectors = model.wv[[str(i) for i in range(len(graph.tags))]]
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def incidence(tags_of: Sequence[Sequence[str]], tags: Sequence[str]) -> sparse.csr_matrix:
    """1 where a video has a tag: [N, T]; tags that are not among `tags` are left out."""
    index = {tag: i for i, tag in enumerate(tags)}
    found = [sorted({index[tag] for tag in of_one if tag in index}) for of_one in tags_of]
    ends = np.cumsum([0, *(len(row) for row in found)])
    columns = np.fromiter((column for row in found for column in row), np.int64, ends[-1])
    return sparse.csr_matrix((np.ones(len(columns), np.float32), columns, ends), (len(found), len(index)))


def video_tag_vectors(has: sparse.csr_matrix, vectors: Floats) -> Floats:
    """Eq. 4: the mean of the vectors of a video's tags; zeros where none of them has one.

    Args:
        has: [N, T], from `incidence`.
        vectors: [T, D].

    Returns:
        [N, D].
    """
    counts = np.asarray(has.sum(axis=1))
    return np.asarray(has @ vectors / np.maximum(counts, 1), np.float32)
