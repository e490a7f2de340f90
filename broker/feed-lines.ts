import { Compile } from 'typebox/compile'
import { MusterError } from '#shared/errors'
import { FeedMessage } from '#shared/feed'

/** Longest line that is accepted, bytes; the longest that is sent (1 000 members, a policy) is below 256 KiB. */
const LINE_LIMIT_BYTES = 1 << 20

const NEWLINE = 0x0a

const schema = Compile(FeedMessage)

/**
 * Reads NDJSON and yields the complete messages of each chunk.
 *
 * A line that is not a message of the schema ends the stream, unknown kinds of change included: a broker that skips
 * what it does not understand could skip a kind of hold.
 * @throws MusterError invalid_request
 */
export async function* readMessages(body: AsyncIterable<Uint8Array>): AsyncGenerator<FeedMessage[]> {
  let rest: Buffer[] = []
  let restBytes = 0
  for await (const chunk of body) {
    const lines: Buffer[] = []
    let start = 0
    for (let end = chunk.indexOf(NEWLINE); end !== -1; end = chunk.indexOf(NEWLINE, start)) {
      lines.push(Buffer.concat([...rest, chunk.subarray(start, end)]))
      rest = []
      restBytes = 0
      start = end + 1
    }
    rest.push(Buffer.from(chunk.subarray(start)))
    restBytes += chunk.length - start
    if (restBytes > LINE_LIMIT_BYTES) throw refused(`a line is longer than ${LINE_LIMIT_BYTES} bytes`)
    yield lines.filter((line) => line.length > 0).map(parseMessage)
  }
}

/** @throws MusterError invalid_request when the line is not a message that this broker knows */
export function parseMessage(line: Buffer): FeedMessage {
  if (line.length > LINE_LIMIT_BYTES) throw refused(`a line is longer than ${LINE_LIMIT_BYTES} bytes`)
  let message: unknown
  try {
    message = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(line))
  } catch (cause) {
    throw refused('a line is not JSON', cause)
  }
  if (!schema.Check(message)) throw refused(`a message is not in the schema: ${shown(line)}`)
  return message
}

/** Enough of the line to name the fault; the stream carries no secrets. */
function shown(line: Buffer): string {
  return line.subarray(0, 200).toString('latin1')
}

function refused(why: string, cause?: unknown): MusterError {
  return new MusterError('invalid_request', `Cannot follow the change stream: ${why}`, { cause })
}
