"""What commands that speak with servers share: untrusted text, and when to ask again."""
