import type { FastifyReply, FastifyRequest } from 'fastify'
import { openLog } from '#shared/log'
import { openListener } from '../enrollment/http/server.ts'

/**
 * What an OCSP answer cannot do without: the listener of the enrollment service, its HTTP stack and its limits, with
 * one route that takes the same requests whole and answers each with the same two octets, in one write with headers
 * that never change. Says over IPC when it listens.
 */
const port = Number(process.argv[2])
const EMPTY = { 'content-type': 'application/ocsp-response', 'content-length': '2' }

await openListener({
  name: 'empty reply',
  host: '127.0.0.1',
  port,
  tls: null,
  log: openLog('bench', 'warn'),
  register(app) {
    app.addContentTypeParser('application/ocsp-request', { parseAs: 'buffer' }, (_request, body, done) =>
      done(null, body),
    )
    app.post('/ocsp', async (_request: FastifyRequest, reply: FastifyReply) => {
      reply.hijack()
      reply.raw.writeHead(200, EMPTY).end('0\0', 'latin1')
      return reply
    })
  },
})
process.send?.({ type: 'ready' })
