"""Tables, plots and pages made from stored records alone."""
