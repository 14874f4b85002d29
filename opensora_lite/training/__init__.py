"""Training of the small models on LiteWorld: the frame VAE, then T5 and STDiT2 jointly.

    from opensora_lite.training import train
    train("first_steps", "out")          # a recipe of the package or a path; `out` becomes a model folder

recipe.py   a run as one YAML file                 data.py      clips, frame masks, batches
losses.py   L_simple + L_vlb, VAE loss             trainer.py   training loop: optimizers, EMA, checkpoints, processes
models.py   initialization and export              run.py       the stages of a run
muon.py     the Muon optimizer
"""


def __getattr__(name):
    if name == "train":  # lazily: it imports Paddle
        from opensora_lite.device import import_paddle

        import_paddle()
        from opensora_lite.training.run import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
