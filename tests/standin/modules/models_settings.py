def load_instruction_template(name):
    """The text of one of the host's chat templates."""
    return ""
