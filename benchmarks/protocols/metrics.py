"""AUC and logloss in plain NumPy, so that both sides of a comparison are scored by the same lines."""

import numpy as np


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve by ranks (Mann-Whitney); ties share their mean rank."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)]
    positive = labels > 0.5
    positives, negatives = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def logloss(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean cross-entropy of probabilities, clipped to 1e-7."""
    clipped = np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-np.mean(np.where(labels > 0.5, np.log(clipped), np.log1p(-clipped))))
