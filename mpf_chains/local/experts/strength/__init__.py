"""α by measurement: what each strength does to bias and fluency, and which to take."""
