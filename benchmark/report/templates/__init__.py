"""What the HTML page is made of: its template, its style, its script."""
