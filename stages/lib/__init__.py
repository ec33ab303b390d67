"""What stages share, in rooms whose arrows go one way: {runtimes, training} -> nets -> text -> store -> frame."""
