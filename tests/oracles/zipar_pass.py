"""ZipAR written out (docs/method.md, "Parallel decoding"): the rule step by step, and its draws'
log-probabilities in one slow masked pass over a LlamaGen model's own layers, without a cache.

B sequences, L cells, N rows of the mask, C width, V codes.
"""

import math

import torch

from common.models.layers import rotate


def simulate(grid, zipar, given):
    """docs/method.md, "Parallel decoding" to the letter: who may emit is asked anew in every
    step."""
    rows, cols = grid
    held = [min(cols, max(0, given - row * cols)) for row in range(rows)]
    steps = []
    while sum(held) < rows * cols:
        before = list(held)
        step = []
        for row, done in enumerate(before):
            window = cols if zipar.serial_first_row and row == 1 else zipar.window
            if done < cols and (row == 0 or before[row - 1] >= min(cols, done + window)):
                step.append(row * cols + done)
                held[row] += 1
        steps.append(step)
    return steps


def reference(model, class_B, cell_BL, zipar, given):
    """logprob_BL of every cell in one pass without a cache: rows of the mask are inputs, each with
    the step that fed it, and every stand-in is a further row that only it sees itself."""
    cols, length = model.spec.grid[1], model.spec.length
    steps = simulate(model.spec.grid, zipar, given)
    step_of = {cell: at for at, step in enumerate(steps) for cell in step}
    fed = [max(step_of.get(cell, -1) + 1, 0) for cell in range(-1, length - 1)]
    rows = [(i, i - 1, fed[i], False) for i in range(length)]
    for cell in range(cols, length, cols):
        at = step_of.get(cell, math.inf)
        if fed[cell] > at:
            above, before = cell - cols, max(cell - 2 * cols, 0)
            newest = max(c for c in range(before, before + cols) if step_of.get(c, -1) < at)
            source = {"prev_prev_last": newest, "left_above": above, "zero": None}
            rows.append((cell, source[zipar.row_start], at, True))
    unseen, visible = look(rows, fed, zipar.mask_undecoded)
    token = [0 if source in (None, -1) else source for _, source, _, _ in rows]
    x_BNC = model.tok_embeddings(cell_BL[:, token])
    x_BNC[:, [source is None for _, source, _, _ in rows]] = 0
    x_BNC[:, 0] = model.cls_embedding(class_B)
    table = model._rotary.on(x_BNC.device)[[row[0] for row in rows]]
    for block in model.layers:
        x_BNC = x_BNC + attention(block, x_BNC, table, visible, unseen)
        x_BNC = x_BNC + block.feed_forward(block.ffn_norm(x_BNC))
    predicts = {i: n for n, (i, _, at, _) in enumerate(rows) if step_of.get(i, at) == at}
    h_BLC = model.norm(x_BNC)[:, [predicts[cell] for cell in range(length)]]
    logprob_BLV = model.head(h_BLC).log_softmax(-1)
    return logprob_BLV.gather(-1, cell_BL[..., None])[..., 0]


def look(rows, fed, mask_undecoded):
    """Which rows each row sees, and how many places of zeros beside them."""
    visible = torch.zeros(len(rows), len(rows), dtype=torch.bool)
    unseen = torch.zeros(len(rows))
    for n, (i, _, at, _) in enumerate(rows):
        seen = set()
        for m, (j, _, when, stands_in) in enumerate(rows):
            late = stands_in and (mask_undecoded or fed[j] <= at)
            if m == n or (j <= i and when <= at and not late):
                visible[n, m] = True
                seen.add(j)
        unseen[n] = 0 if mask_undecoded else i + 1 - len(seen)
    return unseen, visible


def attention(block, x_BNC, table, visible, unseen):
    """Written out; a place of zeros has score 0 and value 0."""
    layer = block.attention
    qkv = layer.wqkv(block.attention_norm(x_BNC)).unflatten(-1, (3, layer.heads, -1))
    query, key, value = qkv.unbind(2)
    query, key = rotate(query, table), rotate(key, table)
    score = torch.einsum("bnhd,bmhd->bhnm", query, key) / query.shape[-1] ** 0.5
    weight = score.exp() * visible
    weight = weight / (weight.sum(-1, keepdim=True) + unseen[:, None])
    return layer.wo(torch.einsum("bhnm,bmhd->bnhd", weight, value).flatten(2))
