import click


@click.group()
def pubsub():
    "x"
