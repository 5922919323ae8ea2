"""Tables, figures and the page of an ablation: data in, figure or text out."""
