/** Longest line that is waited for, characters: a stream that sends a longer one is not ours. */
const LONGEST = 1_048_576

/** The values of an NDJSON stream; a line that is cut off at its end is left out. @throws RangeError, SyntaxError */
export async function* readLines<T>(open: () => Promise<AsyncIterable<Uint8Array>>): AsyncGenerator<T> {
  const decoder = new TextDecoder()
  let rest = ''
  for await (const chunk of await open()) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split('\n')
    rest = lines.pop() ?? ''
    if (rest.length > LONGEST) throw new RangeError('a line of the stream is too long')
    for (const line of lines) if (line !== '') yield JSON.parse(line) as T // the server's schema says what it is
  }
}
