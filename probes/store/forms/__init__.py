"""What every table of a run holds, column by column: schema, reference page, words and plots come from here."""
