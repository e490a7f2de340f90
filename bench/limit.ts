import { createPublicKey, sign, verify } from 'node:crypto'
import { generateKey, spkiDer } from '#shared/pki/keys'
import { derToPem } from '#shared/pki/pem'

/**
 * What an enrollment cannot do without: one verification with a key that was never seen before, one signature (P-256).
 * A program of its own, which says on stdout what it took.
 */
const DIFFERENT = 512
const OCTETS = 400
const count = Number(process.argv[2])
const caKey = generateKey()
const tbs = Buffer.alloc(OCTETS, 7)
const requests = Array.from({ length: DIFFERENT }, (_, index) => {
  const key = generateKey()
  const info = Buffer.alloc(OCTETS, index)
  return { spki: spkiDer(key), info, signature: sign('sha256', info, key) }
})

for (const request of requests) verifyAndSign(request) // rehearsal
const before = process.cpuUsage()
for (let done = 0; done < count; done++) verifyAndSign(requests[done % DIFFERENT] ?? requests[0])
const { user, system } = process.cpuUsage(before)
process.stdout.write(JSON.stringify({ count, cpuS: (user + system) / 1e6 }))

function verifyAndSign(request: (typeof requests)[number] | undefined): void {
  if (request === undefined) throw new RangeError('no request')
  const key = createPublicKey(derToPem(request.spki, 'PUBLIC KEY')) // the quickest way in
  if (!verify('sha256', request.info, key, request.signature)) throw new Error('a good signature was refused')
  sign('sha256', tbs, caKey)
}
