"""What is computed: policy, draft, selection and tail. Knows tensors and tables, no backend and no run."""
