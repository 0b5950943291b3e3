"""What commands report, as documents: one for people and programs alike."""
