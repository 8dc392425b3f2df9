"""Trains a small HART from scratch, on one GPU, on the procedural pictures of `hart_edge.export.shapes`.

    python -m hart_edge.export.train.tokenizer   --out runs/tokenizer --minutes 9
    python -m hart_edge.export.train.transformer --tokenizer runs/tokenizer --out runs/transformer --minutes 16
    python -m hart_edge.export.train.assemble    --run runs/transformer --out runs/checkpoint
    python -m hart_edge.export.train.plots       --run runs/tokenizer --run runs/transformer --out runs/loss.png
    python -m hart_edge.export.train.sample      --checkpoint runs/checkpoint --out runs/samples.png

A training command ends after `--session` minutes (9) and is given again, unchanged, to go on: `--minutes` is the
training time of the whole stage, and the learning rate follows it. The run folder holds the state (saved every 100 s
and at the end, replaced in one step), `log.jsonl`, and the stage's part of a checkpoint. Batch k is the same for the
same `--seed`; with `--steps N --reuse 1` in place of time a run is repeatable, resumed or not.

To train on pictures of your own, write a `data.Source` and give it to `tokenizer.run` and `transformer.run`; sizes
are in `sizes.py`.

A finished model can be trained on: `--init` starts either stage from a checkpoint's weights, and the decoder alone
learns more of what the residual carries, with latents and codes as they are:

    python -m hart_edge.export.train.tokenizer   --init runs/checkpoint --part decoder --continuous 0.9 --out runs/decoder
    python -m hart_edge.export.train.transformer --init runs/checkpoint --tokenizer runs/decoder --out runs/further
"""
