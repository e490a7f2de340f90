const END_OF_HEAD = '\r\n\r\n'

/** Collects one HTTP/1.1 reply from the octets of a connection; only what the servers of the benches send. */
export class Reply {
  #text = ''

  /** The reply once it is whole, else null. */
  add(octets: Buffer): { status: number; body: string } | null {
    this.#text += octets.toString('latin1')
    const head = this.#text.indexOf(END_OF_HEAD)
    if (head === -1) return null
    const status = Number(this.#text.slice(9, 12))
    const rest = this.#text.slice(head + END_OF_HEAD.length)
    const [, length] = /\r\ncontent-length: *(\d+)/i.exec(this.#text.slice(0, head + 2)) ?? []
    if (length !== undefined) return rest.length >= Number(length) ? { status, body: rest } : null
    return rest.endsWith('0\r\n\r\n') ? { status, body: unchunked(rest) } : null
  }
}

function unchunked(text: string): string {
  let body = ''
  for (let rest = text; ; ) {
    const line = rest.indexOf('\r\n')
    const length = Number.parseInt(rest.slice(0, line), 16)
    if (!(length > 0)) return body
    body += rest.slice(line + 2, line + 2 + length)
    rest = rest.slice(line + 4 + length)
  }
}
