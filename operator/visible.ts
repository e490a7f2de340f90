/**
 * Text that may come from a device, made safe to print: a control character in a name, a topic or an error must not
 * steer the terminal. Line ends and tabs too: one value is one line.
 */
export function visible(text: string): string {
  return text.replaceAll(
    /[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g,
    (character) => {
      return `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`
    },
  )
}
