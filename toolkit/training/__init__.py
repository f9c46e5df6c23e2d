"""TransferPlan → TrainedModel: freezing, parameter groups, the Lightning module, checkpoints, the fit."""
