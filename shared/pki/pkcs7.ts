import { readDer } from './der.ts'
import { element, explicit, integer, oid, sequence, setOf } from './der-write.ts'
import { OID } from './oid.ts'

/**
 * A degenerate SignedData: certificates, no content, no signers (RFC 5652 section 5, RFC 7030 section 4.1.3):
 * what EST answers with. Takes whole DER certificates; the order is DER's, not the caller's.
 */
export function certsOnly(ders: readonly Uint8Array[]): Buffer {
  for (const der of ders) readDer(der)
  const certificates = element(0xa0, ...ders.toSorted(Buffer.compare))
  const signedData = sequence(integer(1), setOf(), sequence(oid(OID.data)), certificates, setOf())
  return sequence(oid(OID.signedData), explicit(0, signedData))
}
