"""``python run.py bench e2e``: whole denoising steps of full-size models, dense against sparse."""
