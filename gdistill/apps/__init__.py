"""What finished models are used for: editing, inpainting, style transfer (v_fn in, images out)."""
