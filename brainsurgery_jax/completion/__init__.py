"""What a text that is being typed may go on with: steps in either form, for the prompt and for other front ends."""
