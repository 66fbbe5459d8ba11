import gradio as gr

theme = gr.themes.Default(font=["sans-serif"], font_mono=["monospace"]).set(block_border_width="0px", block_shadow="none")
css = ".tabs.svelte-710i53 { margin-top: 0 } .slim-dropdown { background-color: transparent }"


def create_refresh_button(component, refresh_method, refreshed_args, elem_class, interactive=True):
    def refresh():
        refresh_method()
        return gr.update(**(refreshed_args() if callable(refreshed_args) else refreshed_args))

    button = gr.Button("🔄", elem_classes=elem_class, interactive=interactive)
    button.click(refresh, None, component)
    return button
