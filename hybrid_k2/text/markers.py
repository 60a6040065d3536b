"""The names of K2's control tokens; their ids are the vocabulary's business and differ by model."""

IM_USER, IM_ASSISTANT, IM_SYSTEM = "<|im_user|>", "<|im_assistant|>", "<|im_system|>"
IM_MIDDLE, IM_END = "<|im_middle|>", "<|im_end|>"
MEDIA_BEGIN = "<|media_begin|>"

# Thinking and later; in K2-Instruct's vocabulary these are ordinary text.
THINK_BEGIN, THINK_END = "<think>", "</think>"

TOOL_SECTION_BEGIN, TOOL_SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
TOOL_CALL_BEGIN, TOOL_CALL_END = "<|tool_call_begin|>", "<|tool_call_end|>"
TOOL_ARGUMENT_BEGIN = "<|tool_call_argument_begin|>"
TOOL_MARKERS = (
    TOOL_SECTION_BEGIN,
    TOOL_CALL_BEGIN,
    TOOL_ARGUMENT_BEGIN,
    TOOL_CALL_END,
    TOOL_SECTION_END,
)
# Spellings that K2's report uses and its vocabulary lacks; models write them as ordinary text.
TOOL_MARKER_ALIASES = {
    "<|tool_call_section_begin|>": TOOL_SECTION_BEGIN,
    "<|tool_call_section_end|>": TOOL_SECTION_END,
    "<|tool_arguments_begin|>": TOOL_ARGUMENT_BEGIN,
}

# An answer ends at any of these; a base model ends with [EOS], a chat model with <|im_end|>.
END_TOKENS = (IM_END, "[EOS]", "[EOT]")
