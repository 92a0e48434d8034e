"""Conversations: a model's chat template, rendered safely, and what of it a stream still has to read.

    user_text     strings that know which of their characters a user wrote
    operations    what a template may do to strings, so that they still know it afterwards
    meter         how much work a template may do
    rewrite       the template's syntax tree, checked, and made to ask the meter
    sandbox       Jinja's sandbox with all of it
    template      a bundle's template: messages in, text out
    turns         the text that a stream has not read yet

jinja2 is imported when the first template is rendered, and not before.
"""
