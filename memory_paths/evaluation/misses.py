"""Why an answer was wrong: where on its way from the lesson to the answer a fact was lost. Pure functions of rows."""

from __future__ import annotations

from collections import Counter

import numpy as np

from memory_paths.evaluation.churn import RIGHT
from memory_paths.evaluation.rows import Rows

WITH_ITEM = "with_item"
RELEARNT = "relearnt"
CAUSES = {
    "not_written": "the path does not hold the item",
    "never_learnable": "wrong even with the item itself in the prompt",
    "not_retrieved": "the path holds the item and did not put it into the prompt",
    "not_used": "the item stood in the prompt",
    "overwritten": "right after learning it the answer was right",
    "never_learnt": "right after learning it the answer was wrong already",
    "unclear": "it was not asked right after it was learnt",
}


def misses(rows: Rows, *, experiences: int) -> dict[str, int]:
    """How many of the questions about everything taught were answered rightly in the end, and why the others were not.

    Args:
        rows: What was asked and answered; rows of the kind `WITH_ITEM` are answers to the same questions with the item
            itself in the prompt.
        experiences: How many experiences the stream has.

    Returns:
        By "right" and by each of `CAUSES` that occurs, in this order, the number of questions. A cause stands for all
        that come after it.
    """
    last = (rows.stage == experiences) & np.isfinite(rows.correct)
    asked = np.flatnonzero(last & (rows.kind == "direct") & rows.uniform)
    learnt = (rows.stage == rows.experience) & (rows.kind == "direct")
    at_first = {rows.key[at]: rows.correct[at] for at in np.flatnonzero(learnt & np.isfinite(rows.correct))}
    with_item = {rows.key[at]: rows.correct[at] for at in np.flatnonzero(last & (rows.kind == WITH_ITEM))}
    finds = any(rows.recalls[asked])
    found: Counter[str] = Counter()
    for at in asked:
        key = rows.key[at]
        if rows.correct[at] >= RIGHT:
            found["right"] += 1
        elif rows.held[at] == 0.0:
            found["not_written"] += 1
        elif with_item.get(key, 1.0) < RIGHT:
            found["never_learnable"] += 1
        elif finds:
            found["not_used" if set(rows.ids[at] or ()) <= set(rows.shown[at] or ()) else "not_retrieved"] += 1
        elif key in at_first:
            found["overwritten" if at_first[key] >= RIGHT else "never_learnt"] += 1
        else:
            found["unclear"] += 1
    return {cause: found[cause] for cause in ("right", *CAUSES) if found[cause]}
