"""Facts of a data set → TransferPlan."""
