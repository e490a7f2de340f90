import type { Duplex } from 'node:stream'

/** Octets that the parser waits to have whole, as `bl` keeps them; its methods are all that the parser calls. */
interface Octets {
  readonly constructor: { readonly BufferList?: new () => Octets }
}

/** The parts of Aedes' Client that are more than it needs. */
export interface Heavy {
  readonly conn: Duplex
  readonly _parser: object
  close(): void
}

/**
 * Lets go of what Aedes makes for a client and nobody asks for: of an idle connection it is a tenth of what is in the
 * heap. The parser's list of octets is a stream, with the state of one for reading and one for writing, and is only
 * used as a list. `finished` listens for five events to close the client once the socket has ended or closed, of which
 * Aedes hears the end, and errors, by itself; the close is left.
 */
export function lighten(client: Heavy): void {
  const parsing = client._parser as { _list: Octets } // as mqtt-packet has it
  const { BufferList } = parsing._list.constructor
  if (BufferList !== undefined) parsing._list = new BufferList()
  const closing = client as Heavy & { _eos(): void } // as Aedes has it
  closing._eos()
  closing._eos = noop
  client.conn.on('close', () => client.close())
}

function noop(): void {}
