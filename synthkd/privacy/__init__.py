"""What models and synthetic images reveal about private images: what may be claimed, and what can be measured.

Claims: `ledger` and `journal` count the noisy queries, `accounting` computes their epsilon and `calibration` the noise
for a budget, `dpsgd` trains, `claims` writes down what holds. Measurements: `canaries` and `membership` attack a model,
`rates` and `ratio` bound what an attack shows, `copies` compares images, `blind` needs no model. `audit` puts them
together; `verdict` and `report` say what follows. Import from the modules.
"""
