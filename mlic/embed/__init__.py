"""`mlic embed`: what a model sees in each image, as one vector for each."""

from mlic.command import make_callable

make_callable(__name__, "mlic.embed.embed:embed", "mlic.config.predict:EmbedConfig")
