"""Teachers: what each word of a text contributed to a black box's answer."""
