"""How good an explainer is: faithfulness, speed, calibration."""
