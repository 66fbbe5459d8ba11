"""The host's table of evaluations: read once, kept in memory, written as a whole."""

from pathlib import Path

import pandas as pd

from modules import shared

COLUMNS = ["Model", "LoRAs", "Dataset", "Perplexity", "stride", "max_length", "Date", "Comment"]


def table_file():
    return Path(shared.args.user_data_dir) / "logs" / "evaluations.csv"


def load_past_evaluations():
    if not table_file().exists():
        return pd.DataFrame(columns=COLUMNS)
    table = pd.read_csv(table_file(), dtype=str)
    table["Perplexity"] = pd.to_numeric(table["Perplexity"])
    return table


past_evaluations = load_past_evaluations()


def save_past_evaluations(table):
    global past_evaluations
    past_evaluations = table
    table_file().parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(table_file(), index=False)


def generate_markdown_table():
    return past_evaluations.sort_values(by=["Dataset", "stride", "Perplexity", "Date"])
