import { createInterface } from 'node:readline/promises'
import { styleText } from 'node:util'

export type Colour = 'green' | 'red' | 'yellow' | 'bold' | 'dim'

/** Where a command reads and writes: data to `out`, everything for people to `err`. */
export interface Terminal {
  out(text: string): void
  err(text: string): void
  /** True when somebody is there to answer a question. */
  readonly canAsk: boolean
  /** True when a screen, not a file, gets the data. */
  readonly isScreen: boolean
  /** One line of answer; empty when the input ends. */
  ask(question: string): Promise<string>
  /** Colours the text where it goes to a screen; NO_COLOR and FORCE_COLOR are honoured. */
  paint(colour: Colour, text: string, stream?: 'out' | 'err'): string
}

/** The terminal that this process was started from. */
export function processTerminal(): Terminal {
  process.stdout.on('error', endWithReader)
  return {
    out: (text) => void process.stdout.write(`${text}\n`),
    err: (text) => void process.stderr.write(`${text}\n`),
    canAsk: Boolean(process.stdin.isTTY && process.stderr.isTTY),
    isScreen: Boolean(process.stdout.isTTY),
    ask,
    paint: (colour, text, stream = 'err') =>
      styleText(colour, text, { stream: stream === 'out' ? process.stdout : process.stderr }),
  }
}

/** `muster events tail | head`: whoever reads has had enough, and that is no fault. */
function endWithReader(error: NodeJS.ErrnoException): void {
  if (error.code !== 'EPIPE') throw error
  if (!process.emit('SIGTERM', 'SIGTERM')) process.exit() // what has children stops them first
}

async function ask(question: string): Promise<string> {
  const lines = createInterface({ input: process.stdin, output: process.stderr })
  const ended = new AbortController()
  lines.once('close', () => ended.abort())
  try {
    return (await lines.question(question, { signal: ended.signal })).trim()
  } catch {
    return '' // the input has ended: nobody answers
  } finally {
    lines.close()
  }
}
