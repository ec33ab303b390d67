"""Models behind OpenAI's API, with a page to chat on: python -m apps.serve [--model MODEL]"""
