"""Training of the small models on LiteWorld: the VAE, then T5 and the transformer (STDiT2 or STDiT3) jointly.

    from opensora_lite.training import train
    train("first_steps", "out")          # a recipe of the package or a path; `out` becomes a model folder

recipe.py   a run as one YAML file                 data.py      clips, frame masks, batches
configs.py  what a recipe says of its models       models.py    initialization and export
losses.py   L_simple + L_vlb, flow, VAE losses     trainer.py   training loop: optimizers, EMA, checkpoints, processes
muon.py     the Muon optimizer                     stages.py    the stages of a run, of Open-Sora 1.1 and 1.2
                                                   run.py       a whole run
"""


def __getattr__(name):
    if name == "train":  # lazily: it imports Paddle
        from opensora_lite.device import import_paddle

        import_paddle()
        from opensora_lite.training.run import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
