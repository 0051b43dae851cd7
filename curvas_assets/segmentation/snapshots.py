"""Which earlier weights a training keeps, and which of them it publishes: arithmetic of epochs, nothing of nnU-Net.

A training may stop before its last epoch, so where the second half of its epochs begins is known only when it ends. While it
goes on, it keeps the weights of every s-th epoch, where s doubles as it gets longer; in the end it chooses. All is decided
by the number of epochs that were run, so a training that was killed and resumed ends with the same snapshots.

The learning rate falls once, by nnU-Net's polynomial, and is never raised again: these are snapshots along one descent, not
the minima of a cyclic schedule (Huang et al. 2017, arXiv 1704.00109), and are less diverse than those.
"""

from collections.abc import Iterable


def stride(epochs: int, snapshots: int) -> int:
    """s, when so many epochs have been run: the largest power of two with at least one epoch more than `snapshots` in the
    second half.

    >>> [stride(epochs, snapshots=3) for epochs in (4, 15, 16, 31, 32, 300)]
    [1, 1, 2, 2, 4, 32]
    """
    return 1 << max(0, (epochs // (2 * (snapshots + 1))).bit_length() - 1)


def kept_epochs(epochs: int, snapshots: int) -> list[int]:
    """The epochs, counted from 1, whose weights are at hand when so many have been run: multiples of s in the second half. A
    training of fewer than 2 (K + 1) epochs keeps the last K + 1.

    Whatever is kept now was kept before, or is the present epoch.

    >>> kept_epochs(300, snapshots=3)
    [160, 192, 224, 256, 288]
    >>> kept_epochs(5, snapshots=3)
    [2, 3, 4, 5]
    """
    if not snapshots:
        return []
    step = stride(epochs, snapshots)
    first = max(1, min((epochs + 1) // 2, epochs - snapshots))
    return list(range(-(-first // step) * step, epochs + 1, step))


def most_kept(snapshots: int) -> int:
    """The largest number of weights that are at hand at a time.

    >>> most_kept(3) >= max(len(kept_epochs(epochs, 3)) for epochs in range(2000)), most_kept(0)
    (True, 0)
    """
    return 2 * snapshots + 3 if snapshots else 0


def chosen_epochs(kept: Iterable[int], epochs: int, published: int, snapshots: int) -> list[int]:
    """The epochs that become snapshots 1 … K: for each of K points evenly spaced over the second half, at (k − ½) / K of it, the
    nearest epoch that is kept, free, and not the published one, whose weights are the model itself.

    Args:
        kept: epochs whose weights are at hand.
        epochs: that were run, n.
        published: the epoch of the published weights.
        snapshots: K.

    Returns:
        At most K epochs in their order; fewer only if the training ran no more than K epochs.

    >>> chosen_epochs(kept_epochs(300, 3), 300, published=224, snapshots=3)
    [160, 256, 288]
    >>> chosen_epochs(kept_epochs(3, 3), 3, published=3, snapshots=3)
    [1, 2]
    """
    free = sorted(set(kept) - {published})
    chosen: list[int] = []
    for k in range(snapshots):
        if not free:
            break
        point = epochs / 2 * (1 + (k + 0.5) / snapshots)
        nearest = min(free, key=lambda epoch: abs(epoch - point))
        free.remove(nearest)
        chosen.append(nearest)
    return sorted(chosen)
